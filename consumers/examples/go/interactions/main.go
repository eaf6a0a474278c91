// Slash commands: registers /ping with Discord and answers it over REST, within Discord's 3 seconds.
//
// Start it several times: each interaction goes to one of the processes. It has a durable consumer of
// its own: two programs that answer different commands must not share one, since each interaction goes
// to one worker only.
//
//	NATS_URL=nats://127.0.0.1:4222 DISCORD_TOKEN=... go run ./interactions
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// Interactions answered at once.
	concurrency = 32
	// Discord forgets an interaction that was not answered for so long.
	window = 3 * time.Second
	// Another worker has the interaction so long after this one died; it is told more often that we live.
	ackWait = time.Second

	discordEpochMs      = 1_420_070_400_000
	applicationCommand  = 2
	channelMessage      = 4
	alreadyAcknowledged = 40060
	chatInput           = 1
	answerReserve       = 500 * time.Millisecond
	firstPause          = 50 * time.Millisecond
	longestTry          = time.Second
	sorry               = "Something went wrong while handling this command."
)

var (
	api     = cmp.Or(os.Getenv("DISCORD_API_URL"), "https://discord.com/api/v10")
	token   = os.Getenv("DISCORD_TOKEN")
	prefix  = cmp.Or(os.Getenv("SUBJECT_PREFIX"), "discord")
	events  = strings.ToUpper(prefix) + "_EVENTS"
	durable = cmp.Or(os.Getenv("CONSUMER_NAME"), "go-commands")
	filter  = prefix + ".shard.*.events.*.INTERACTION_CREATE"
)

type interaction struct {
	ID    string `json:"id"`
	Type  int    `json:"type"`
	Token string `json:"token"`
	Data  struct {
		Name string `json:"name"`
	} `json:"data"`
}

// age is the time since Discord made it, by its snowflake.
func (i interaction) age() time.Duration {
	id, err := strconv.ParseInt(i.ID, 10, 64)
	if err != nil {
		return window
	}
	return time.Since(time.UnixMilli(id>>22 + discordEpochMs))
}

// ping is yours, one per command: returns the text of the answer.
func ping(_ context.Context, interaction interaction) (string, error) {
	return fmt.Sprintf("Pong from Go, %d ms after you typed it", interaction.age().Milliseconds()), nil
}

type command struct {
	description string
	answer      func(context.Context, interaction) (string, error)
}

var commands = map[string]command{"ping": {"Says pong", ping}}

// request is one REST request; returns the status and reads the answer's JSON into `into`.
func request(ctx context.Context, method, path string, body, into any, authorised bool) (int, error) {
	var data io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return 0, err
		}
		data = bytes.NewReader(text)
	}
	ask, err := http.NewRequestWithContext(ctx, method, api+path, data)
	if err != nil {
		return 0, err
	}
	ask.Header.Set("User-Agent", "DiscordBot (https://example.com, 1.0)")
	ask.Header.Set("Content-Type", "application/json")
	if authorised {
		ask.Header.Set("Authorization", "Bot "+token)
	}
	answer, err := http.DefaultClient.Do(ask)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, err
	}
	if into != nil {
		// What comes from something before Discord is no JSON; its status says enough.
		_ = json.Unmarshal(text, into)
	}
	return answer.StatusCode, nil
}

// register adds what is missing or differs; commands of other programs stay.
func register(ctx context.Context) error {
	var application struct {
		ID string `json:"id"`
	}
	status, err := request(ctx, "GET", "/applications/@me", nil, &application, true)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("Discord answers %d", status)
	}
	path := "/applications/" + application.ID + "/commands"
	var there []struct{ Name, Description string }
	if _, err := request(ctx, "GET", path, nil, &there, true); err != nil {
		return err
	}
	known := map[string]string{}
	for _, command := range there {
		known[command.Name] = command.Description
	}
	for name, command := range commands {
		if known[name] == command.description {
			continue
		}
		body := map[string]any{"name": name, "description": command.description, "type": chatInput}
		status, err := request(ctx, "POST", path, body, nil, true)
		if err != nil {
			return err
		}
		if status/100 != 2 {
			return fmt.Errorf("registering /%s: %d", name, status)
		}
	}
	return nil
}

// respond posts the first response until the deadline; says whether the interaction is done with.
func respond(deadline context.Context, interaction interaction, content string) bool {
	path := "/interactions/" + interaction.ID + "/" + interaction.Token + "/callback"
	body := map[string]any{"type": channelMessage, "data": map[string]any{"content": content}}
	for pause := firstPause; deadline.Err() == nil; pause *= 2 {
		try, cancel := context.WithTimeout(deadline, longestTry)
		var said struct {
			Code       int     `json:"code"`
			Message    string  `json:"message"`
			RetryAfter float64 `json:"retry_after"`
		}
		// A callback carries its own token, and its limit is not the bot's.
		status, err := request(try, "POST", path, body, &said, false)
		cancel()
		switch {
		case err == nil && status/100 == 2:
			return true
		case err == nil && said.Code == alreadyAcknowledged:
			return true // an earlier delivery was answered
		case err == nil && status != http.StatusTooManyRequests && status < 500:
			log.Printf("Discord refuses the answer: %d %s", status, said.Message)
			return false
		}
		wait := max(pause, time.Duration(said.RetryAfter*float64(time.Second)))
		select {
		case <-deadline.Done():
		case <-time.After(wait):
		}
	}
	return false
}

// work is one delivery, in time or not at all.
func work(delivery jetstream.Msg) {
	settle := delivery.Ack
	var event struct {
		D interaction `json:"d"`
	}
	err := json.Unmarshal(delivery.Data(), &event)
	interaction := event.D
	command, ours := commands[interaction.Data.Name]
	left := window - max(interaction.age(), 0)
	switch {
	case err != nil:
		log.Printf("no interaction: %v", err)
		settle = delivery.Term
	case interaction.Type != applicationCommand || !ours:
		// Somebody else's.
	case left <= 0:
		settle = delivery.Term // an answer would be refused
	default:
		stopAlive := keepAlive(delivery)
		deadline, cancel := context.WithTimeout(context.Background(), left)
		done := respond(deadline, interaction, answer(deadline, command, interaction))
		cancel()
		stopAlive()
		log.Printf("/%s: answered: %t", interaction.Data.Name, done)
		if !done {
			settle = delivery.Term
		}
	}
	if err := settle(); err != nil {
		log.Printf("the stream could not be told: %v", err)
	}
}

// answer lets the command's handler work; a panic is its interaction's trouble and nobody else's.
func answer(deadline context.Context, command command, interaction interaction) (text string) {
	defer func() {
		if panicked := recover(); panicked != nil {
			log.Printf("/%s panicked: %v", interaction.Data.Name, panicked)
			text = sorry
		}
	}()
	end, _ := deadline.Deadline()
	ctx, cancel := context.WithDeadline(deadline, end.Add(-answerReserve))
	defer cancel()
	text, err := command.answer(ctx, interaction)
	if err != nil {
		log.Printf("/%s failed: %v", interaction.Data.Name, err)
		return sorry
	}
	return text
}

// keepAlive tells the server that the interaction is being answered, until the returned function is called.
func keepAlive(delivery jetstream.Msg) func() {
	ticker, done := time.NewTicker(ackWait/3), make(chan struct{})
	go func() {
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				if err := delivery.InProgress(); err != nil {
					log.Print(err)
				}
			}
		}
	}()
	return func() { close(done) }
}

func openInteractions(ctx context.Context, js jetstream.JetStream) (jetstream.Consumer, error) {
	consumer, err := js.Consumer(ctx, events, durable)
	if !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return consumer, err
	}
	return js.CreateOrUpdateConsumer(ctx, events, jetstream.ConsumerConfig{
		Durable: durable, FilterSubject: filter, DeliverPolicy: jetstream.DeliverNewPolicy,
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxDeliver: 5, MaxAckPending: 1000,
	})
}

// takeInteractions is one of `concurrency` that take an interaction each.
func takeInteractions(stopping context.Context, js jetstream.JetStream) {
	for stopping.Err() == nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		consumer, err := openInteractions(ctx, js)
		cancel()
		for err == nil && stopping.Err() == nil {
			var delivery jetstream.Msg
			delivery, err = consumer.Next(jetstream.FetchMaxWait(time.Second))
			if err == nil {
				work(delivery)
			} else if errors.Is(err, nats.ErrTimeout) || errors.Is(err, jetstream.ErrNoMessages) {
				err = nil
			}
		}
		if err != nil {
			log.Printf("pulling failed, trying again: %v", err)
			time.Sleep(250 * time.Millisecond)
		}
	}
}

// connect makes a connection that comes back by itself, however long NATS is away, and says so.
func connect() (*nats.Conn, error) {
	return nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL), nats.MaxReconnects(-1),
		nats.ReconnectWait(250*time.Millisecond),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil { // else it is us
				fmt.Println("NATS is away")
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { fmt.Println("NATS is back") }))
}

func main() {
	stopping, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if token == "" {
		log.Fatal("DISCORD_TOKEN is missing")
	}
	if err := register(stopping); err != nil {
		log.Fatal(err)
	}
	nc, err := connect()
	if err != nil {
		log.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		log.Fatal(err)
	}
	var workers sync.WaitGroup
	for range concurrency {
		workers.Go(func() { takeInteractions(stopping, js) })
	}
	workers.Wait()
	if err := nc.Flush(); err != nil {
		log.Print(err)
	}
	nc.Close()
}

// Shared events: one durable consumer, any number of these processes, no order between events.
//
// Each event is acknowledged by itself. One that fails comes again after a pause, to whichever worker
// is free; after the last attempt it goes to the dead-letter stream with the reason. The settings are
// those of Events::shared in the Rust library, so that workers in both languages may share a durable.
//
//	NATS_URL=nats://127.0.0.1:4222 go run ./shared
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
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
	// Handlers mostly wait for a database or for Discord: this many at once.
	concurrency = 64
	// After this time without a sign of life an event goes to another worker.
	ackWait = 5 * time.Second
)

var (
	prefix = cmp.Or(os.Getenv("SUBJECT_PREFIX"), "discord")
	events = strings.ToUpper(prefix) + "_EVENTS"
	dead   = strings.ToUpper(prefix) + "_DEAD"
	// All workers of one kind use one name; another kind needs another one.
	durable = cmp.Or(os.Getenv("CONSUMER_NAME"), "go-shared")
	filter  = prefix + ".shard.*.events.*.MESSAGE_CREATE"
	// Pauses after the first failed attempt, the second, ...; one attempt more than pauses.
	pauses = []time.Duration{250 * time.Millisecond, time.Second, 3 * time.Second, 8 * time.Second}
	// Need not be handled, now or later.
	errDiscard = errors.New("discard")
	// Never again, but keep it in the dead-letter stream: wrap it with the reason.
	errDead = errors.New("given up")
)

type message struct {
	ID        string `json:"id"`
	ChannelID string `json:"channel_id"`
	Content   string `json:"content"`
	Author    struct {
		Bot bool `json:"bot"`
	} `json:"author"`
}

// handle is yours. Any other error means: try again later. It runs at least once per event; messageID
// is the same each time, the key to tell repetitions.
func handle(message message, messageID string) error {
	switch {
	case message.Author.Bot:
		return errDiscard
	case message.Content == "!fail":
		return errors.New("the message asks for a failure")
	case message.Content == "!dead":
		return fmt.Errorf("%w: the message asks for it", errDead)
	}
	fmt.Printf("message %s in channel %s (%s)\n", message.ID, message.ChannelID, messageID)
	return nil
}

// work is one delivery from arrival to acknowledgement.
func work(js jetstream.JetStream, delivery jetstream.Msg) {
	meta, err := delivery.Metadata()
	if err != nil {
		log.Print(err)
		return
	}
	place := fmt.Sprintf("%s@%d", meta.Stream, meta.Sequence.Stream)
	messageID := cmp.Or(delivery.Headers().Get("Nats-Msg-Id"), place)
	stopAlive := keepAlive(delivery)
	err = attempt(delivery, messageID)
	stopAlive()
	switch {
	case err == nil || errors.Is(err, errDiscard):
		err = delivery.Ack()
	case !errors.Is(err, errDead) && meta.NumDelivered <= uint64(len(pauses)):
		err = delivery.NakWithDelay(pauses[meta.NumDelivered-1])
	default:
		reason := err.Error()
		if !errors.Is(err, errDead) {
			reason = fmt.Sprintf("tried %d times: %v", meta.NumDelivered, err)
		}
		log.Printf("given up: %s: %s", messageID, reason)
		if err = bury(js, delivery, meta.NumDelivered, messageID, reason, place); err != nil {
			log.Printf("could not be stored as dead: %v", err)
			err = delivery.NakWithDelay(2 * time.Second)
		} else {
			err = delivery.Term()
		}
	}
	if err != nil {
		log.Printf("the stream could not be told, the event comes again: %v", err)
	}
}

// attempt lets the handler try; a panic is its event's trouble and nobody else's.
func attempt(delivery jetstream.Msg, messageID string) (err error) {
	defer func() {
		if panicked := recover(); panicked != nil {
			err = fmt.Errorf("the handler panicked: %v", panicked)
		}
	}()
	var event struct {
		D message `json:"d"`
	}
	if err := json.Unmarshal(delivery.Data(), &event); err != nil {
		return fmt.Errorf("%w: the frame is no message: %v", errDead, err)
	}
	return handle(event.D, messageID)
}

// keepAlive tells the server that the event is still being worked on, until the returned function is called.
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

func bury(js jetstream.JetStream, delivery jetstream.Msg, deliveries uint64, messageID, reason, place string) error {
	reason = strings.Join(strings.Fields(reason), " ")
	letter := nats.NewMsg(prefix + ".dead." + durable)
	letter.Data = delivery.Data()
	// Stored once, even if this is repeated.
	letter.Header.Set("Nats-Msg-Id", durable+"/"+messageID)
	letter.Header.Set("Dead-Message-Id", messageID)
	letter.Header.Set("Dead-Reason", reason[:min(len(reason), 1000)])
	letter.Header.Set("Dead-Subject", delivery.Subject())
	letter.Header.Set("Dead-Deliveries", strconv.FormatUint(deliveries, 10))
	letter.Header.Set("Dead-Place", place)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := js.PublishMsg(ctx, letter)
	return err
}

func openDeadLetters(ctx context.Context, js jetstream.JetStream) error {
	_, err := js.Stream(ctx, dead)
	if !errors.Is(err, jetstream.ErrStreamNotFound) {
		return err
	}
	_, err = js.CreateStream(ctx, jetstream.StreamConfig{
		Name: dead, Subjects: []string{prefix + ".dead.*"}, MaxAge: 7 * 24 * time.Hour, MaxBytes: 1 << 30,
		Duplicates: 2 * time.Minute, AllowDirect: true,
	})
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		return nil // another worker was faster
	}
	return err
}

// openEvents opens the durable, made if it is missing; an existing one goes on where it was.
func openEvents(ctx context.Context, js jetstream.JetStream) (jetstream.Consumer, error) {
	consumer, err := js.Consumer(ctx, events, durable)
	if !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return consumer, err
	}
	return js.CreateOrUpdateConsumer(ctx, events, jetstream.ConsumerConfig{
		Durable: durable, FilterSubject: filter, DeliverPolicy: jetstream.DeliverNewPolicy,
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxDeliver: -1, MaxAckPending: 10_000,
	})
}

// takeEvents is one of `concurrency` that take an event each: nobody waits for a batch to fill.
func takeEvents(stopping context.Context, js jetstream.JetStream) {
	for stopping.Err() == nil {
		// What has begun is finished after the signal, too.
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		consumer, err := openEvents(ctx, js)
		cancel()
		for err == nil && stopping.Err() == nil {
			var delivery jetstream.Msg
			// Short, so that a signal to stop does not wait.
			delivery, err = consumer.Next(jetstream.FetchMaxWait(time.Second))
			if err == nil {
				work(js, delivery)
			} else if errors.Is(err, nats.ErrTimeout) || errors.Is(err, jetstream.ErrNoMessages) {
				err = nil
			}
		}
		if err != nil {
			// NATS is away, or somebody deleted the consumer.
			log.Printf("pulling failed, trying again: %v", err)
			time.Sleep(time.Second)
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
	nc, err := connect()
	if err != nil {
		log.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		log.Fatal(err)
	}
	if err := openDeadLetters(stopping, js); err != nil {
		log.Fatal(err)
	}
	var workers sync.WaitGroup
	for range concurrency {
		workers.Go(func() { takeEvents(stopping, js) })
	}
	workers.Wait()
	// Sends what is still to be said, acknowledgements above all.
	if err := nc.Flush(); err != nil {
		log.Print(err)
	}
	nc.Close()
}

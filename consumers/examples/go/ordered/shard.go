package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Events remembered after they are done: a lost acknowledgement brings them again.
const doneMax = 4096

// event is one that is in hand: delivered, and not done.
type event struct {
	sequence    uint64
	guild, name string
	begun       bool

	mutex   sync.Mutex
	message *nats.Msg // the newest delivery
}

func (e *event) newest() *nats.Msg {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	return e.message
}

// tell says something about the event to the server; what gets lost leads to another delivery.
func (e *event) tell(what string) {
	if err := e.newest().Respond([]byte(what)); err != nil {
		log.Print(err)
	}
}

// result is how an event's task ended; one that is not finished is left to the next holder.
type result struct {
	event    *event
	finished bool
}

// shard is one while this process holds it. All fields but the channels belong to the task of `hold`.
type shard struct {
	number  int
	life    *life
	name    string
	release chan struct{} // closed to give the shard up in order
	once    sync.Once
	cancel  context.CancelFunc
	done    chan result

	inHand   map[uint64]*event
	finished map[uint64]bool
	history  []uint64
	waiting  []*event // arrived while nothing may begin
	recover  bool     // nothing may begin
	guilds   map[string][]*event
	behind   []*event // behind one that must be alone, that one first
	alone    bool
	running  int

	outstanding int
	overdue     time.Time
	pin         string
}

// hold begins to hold a shard; its number comes through `ended` when that is over.
func hold(parent context.Context, number int, life *life) *shard {
	ctx, cancel := context.WithCancel(parent)
	s := &shard{
		number: number, life: life, name: fmt.Sprintf("%s-%d", group, number), release: make(chan struct{}), cancel: cancel,
		done: make(chan result, window), inHand: map[uint64]*event{}, finished: map[uint64]bool{}, recover: true,
		guilds: map[string][]*event{},
	}
	go func() {
		err := s.work(ctx)
		cancel()
		for s.running > 0 { // handlers see their context end
			<-s.done
			s.running--
		}
		if err != nil && parent.Err() == nil {
			log.Printf("shard %d cannot be read: %v", number, err)
			time.Sleep(500 * time.Millisecond)
		}
		life.ended <- number
	}()
	return s
}

// giveUp lets what has begun finish, and gives the rest back.
func (s *shard) giveUp() {
	s.once.Do(func() { close(s.release) })
}

// lose ends everything where it stands: another worker holds the shard.
func (s *shard) lose() {
	s.cancel()
}

func (s *shard) work(ctx context.Context) error {
	stream, err := s.open(ctx)
	if err != nil {
		return err
	}
	nc := s.life.registry.nc
	inbox, arrivals := nats.NewInbox(), make(chan *nats.Msg, 2*window)
	subscription, err := nc.ChanSubscribe(inbox, arrivals)
	if err != nil {
		return err
	}
	defer func() { _ = subscription.Unsubscribe() }()
	progress, look, release := time.NewTicker(ackWait/3), time.NewTicker(100*time.Millisecond), s.release
	defer progress.Stop()
	defer look.Stop()
	for {
		if release == nil && s.running == 0 {
			return nil
		}
		if release != nil {
			if err := s.ask(ctx, stream, inbox); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-release:
			release = nil
			// The server shall send nothing more, and what has not begun is for the next holder.
			if err := stream.UnpinConsumer(ctx, s.name, holder); err != nil {
				return err
			}
			for _, event := range s.inHand {
				if !event.begun {
					event.tell("-NAK")
				}
			}
		case message := <-arrivals:
			if err := s.take(ctx, message, release == nil); err != nil {
				return err
			}
		case done := <-s.done:
			s.ended(ctx, done, release == nil)
		case <-progress.C:
			// What waits or runs is not to be delivered again.
			for _, event := range s.inHand {
				if release != nil || event.begun {
					event.tell("+WPI")
				}
			}
		case <-look.C:
			if s.outstanding > 0 && time.Now().After(s.overdue) {
				return fmt.Errorf("%w: the server has forgotten a request, and perhaps what it answered", errLost)
			}
		}
	}
}

// open opens the durable, made if it is missing, where the group began; then nobody is pinned.
func (s *shard) open(ctx context.Context) (jetstream.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var filters []string
	for _, name := range names {
		filters = append(filters, fmt.Sprintf("%s.shard.%d.events.*.%s", prefix, s.number, name))
	}
	stream, err := s.life.registry.js.Stream(ctx, events)
	if err != nil {
		return nil, err
	}
	config := jetstream.ConsumerConfig{
		Durable: s.name, Description: "Events of one shard, in order", FilterSubjects: filters,
		DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &s.life.registry.begin,
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxDeliver: -1, MaxAckPending: window,
		PriorityPolicy: jetstream.PriorityPolicyPinned, PriorityGroups: []string{holder}, PinnedTTL: time.Minute,
	}
	consumer, err := stream.Consumer(ctx, s.name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		consumer, err = stream.CreateConsumer(ctx, config)
	}
	if err != nil {
		return nil, err
	}
	config = consumer.CachedInfo().Config
	there := config.FilterSubjects
	if config.FilterSubject != "" {
		there = []string{config.FilterSubject}
	}
	missing := slices.DeleteFunc(filters, func(filter string) bool { return slices.Contains(there, filter) })
	everything := slices.ContainsFunc(there, func(filter string) bool { return strings.HasSuffix(filter, ".*.*") })
	if len(missing) > 0 && !everything {
		// A worker of another version selected less; nothing is ever taken away.
		config.FilterSubject, config.FilterSubjects = "", append(slices.Clone(there), missing...)
		if _, err := stream.UpdateConsumer(ctx, config); err != nil {
			return nil, err
		}
	}
	return stream, stream.UnpinConsumer(ctx, s.name, holder)
}

// ask asks for as much as there is room for, but not for each place that becomes free. At first only for
// what the server waits for: all that must be in hand before anything begins.
func (s *shard) ask(ctx context.Context, stream jetstream.Stream, inbox string) error {
	if s.recover && s.outstanding == 0 {
		consumer, err := stream.Consumer(ctx, s.name)
		if err != nil {
			return err
		}
		if consumer.CachedInfo().NumAckPending > len(s.inHand) {
			return s.request(ctx, inbox, max(window-len(s.inHand), 1), 100*time.Millisecond)
		}
		s.recover = false
		slices.SortFunc(s.waiting, func(a, b *event) int { return int(a.sequence) - int(b.sequence) })
		s.behind, s.waiting = s.waiting, nil
		s.advance(ctx)
	}
	room := window - len(s.inHand) - s.outstanding
	if s.recover || room <= 0 || (s.outstanding > 0 && room < window/4) {
		return nil
	}
	expires := patience
	if s.pin == "" {
		// Shorter than any lease: we might freeze right now.
		expires = 500 * time.Millisecond
	}
	return s.request(ctx, inbox, room, expires)
}

func (s *shard) request(ctx context.Context, inbox string, batch int, expires time.Duration) error {
	if err := s.life.lease.valid(ctx); err != nil {
		return err
	}
	request := map[string]any{"batch": batch, "expires": expires.Nanoseconds(), "group": holder}
	if s.pin != "" {
		request["id"] = s.pin
	}
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	s.outstanding += batch
	s.overdue = time.Now().Add(expires + 500*time.Millisecond)
	return s.life.registry.nc.PublishRequest("$JS.API.CONSUMER.MSG.NEXT."+events+"."+s.name, inbox, body)
}

// take sees to what comes in: an event, or a status.
func (s *shard) take(ctx context.Context, message *nats.Msg, releasing bool) error {
	status, text := message.Header.Get("Status"), message.Header.Get("Description")
	switch {
	case status == "404" || status == "408" || strings.Contains(text, "Batch Completed"):
		// A request is over.
		left, err := strconv.Atoi(message.Header.Get("Nats-Pending-Messages"))
		if err != nil {
			left = s.outstanding
		}
		s.outstanding = max(s.outstanding-left, 0)
		return nil
	case status != "":
		// Another holder or leader, or no consumer: the order of what comes now means nothing.
		return fmt.Errorf("%w: %s %s", errLost, status, text)
	}
	meta, err := message.Metadata()
	if err != nil {
		return err
	}
	s.outstanding = max(s.outstanding-1, 0)
	if pin := message.Header.Get("Nats-Pin-Id"); pin != "" {
		s.pin = pin
	}
	sequence := meta.Sequence.Stream
	if s.finished[sequence] {
		return message.Respond([]byte("+ACK"))
	}
	if known := s.inHand[sequence]; known != nil {
		known.mutex.Lock()
		known.message = message
		known.mutex.Unlock()
		return nil
	}
	tokens := strings.Split(message.Subject, ".")
	taken := &event{sequence: sequence, guild: tokens[len(tokens)-2], name: tokens[len(tokens)-1], message: message}
	if releasing {
		taken.tell("-NAK")
		return nil
	}
	s.inHand[sequence] = taken
	if s.recover {
		s.waiting = append(s.waiting, taken)
		return nil
	}
	s.behind = append(s.behind, taken)
	s.advance(ctx)
	return nil
}

// advance lets events begin as far as they may: each guild's one after the other, and those that speak
// of the whole shard alone.
func (s *shard) advance(ctx context.Context) {
	for len(s.behind) > 0 {
		next := s.behind[0]
		single := slices.Contains(alone, next.name)
		if s.alone || (single && len(s.guilds) > 0) {
			return
		}
		s.behind = s.behind[1:]
		waiting, busy := s.guilds[next.guild]
		switch {
		case single:
			s.alone = true
			s.begin(ctx, next)
		case busy:
			s.guilds[next.guild] = append(waiting, next)
		default:
			s.guilds[next.guild] = nil
			s.begin(ctx, next)
		}
	}
}

func (s *shard) begin(ctx context.Context, next *event) {
	next.begun = true
	s.running++
	go func() { s.done <- result{next, s.attempts(ctx, next)} }()
}

// ended sees to an event whose task is over.
func (s *shard) ended(ctx context.Context, done result, releasing bool) {
	s.running--
	event := done.event
	delete(s.inHand, event.sequence)
	if !done.finished {
		event.tell("-NAK")
		return
	}
	event.tell("+ACK")
	s.finished[event.sequence] = true
	s.history = append(s.history, event.sequence)
	if len(s.history) > doneMax {
		delete(s.finished, s.history[0])
		s.history = s.history[1:]
	}
	if releasing {
		return
	}
	if slices.Contains(alone, event.name) {
		s.alone = false
	} else if waiting := s.guilds[event.guild]; len(waiting) > 0 {
		s.guilds[event.guild] = waiting[1:]
		s.begin(ctx, waiting[0])
	} else {
		delete(s.guilds, event.guild)
	}
	s.advance(ctx)
}

// attempts tries until the event is handled or buried; false when it is left to the next holder.
func (s *shard) attempts(ctx context.Context, event *event) bool {
	for attempt := 0; ; attempt++ {
		select {
		case <-ctx.Done():
			return false
		case <-s.release:
			return false
		case s.life.slots <- struct{}{}:
		}
		err := s.life.lease.valid(ctx)
		messageID := cmp.Or(event.newest().Header.Get("Nats-Msg-Id"), fmt.Sprintf("%s@%d", events, event.sequence))
		if err == nil {
			err = s.attempt(ctx, event, messageID)
		}
		<-s.life.slots
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		log.Printf("%s failed: %v", messageID, err)
		if attempt >= len(pauses) {
			reason := fmt.Sprintf("tried %d times: %v", attempt+1, err)
			if err = s.bury(ctx, event, messageID, reason); err == nil {
				return true
			}
			log.Printf("could not be stored as dead: %v", err)
		}
		// The guild waits; the slot does not.
		select {
		case <-ctx.Done():
			return false
		case <-s.release:
			return false
		case <-time.After(pauses[min(attempt, len(pauses)-1)]):
		}
	}
}

// attempt lets the handler try; a panic is its guild's trouble and nobody else's.
func (s *shard) attempt(ctx context.Context, event *event, messageID string) (err error) {
	defer func() {
		if panicked := recover(); panicked != nil {
			err = fmt.Errorf("the handler panicked: %v", panicked)
		}
	}()
	if !slices.Contains(names, event.name) {
		return nil
	}
	return handle(ctx, event.newest().Data, s.number, event.guild, event.name, messageID)
}

func (s *shard) bury(ctx context.Context, event *event, messageID, reason string) error {
	message := event.newest()
	meta, err := message.Metadata()
	if err != nil {
		return err
	}
	reason = strings.Join(strings.Fields(reason), " ")
	letter := nats.NewMsg(prefix + ".dead." + group)
	letter.Data = message.Data
	letter.Header.Set("Nats-Msg-Id", group+"/"+messageID)
	letter.Header.Set("Dead-Message-Id", messageID)
	letter.Header.Set("Dead-Reason", reason[:min(len(reason), 1000)])
	letter.Header.Set("Dead-Subject", message.Subject)
	letter.Header.Set("Dead-Deliveries", strconv.FormatUint(meta.NumDelivered, 10))
	letter.Header.Set("Dead-Place", fmt.Sprintf("%s@%d", events, event.sequence))
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err = s.life.registry.js.PublishMsg(ctx, letter)
	return err
}
